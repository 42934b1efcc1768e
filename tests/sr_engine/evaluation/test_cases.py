"""References and the inputs made of them."""

import numpy as np
import pytest

from sr_engine.errors import InputRefused
from sr_engine.evaluation.cases import degradation, is_finer, judged, make_input, read_case
from sr_engine.nifti import read_nifti, write_nifti


@pytest.fixture(scope="module")
def case(data):
    return read_case(data / "brain.nii.gz")


def test_the_judged_seven_are_found(shared_dir):
    names = [path.name for path in judged(shared_dir / "data" / "volumes")]
    assert len(names) == 7
    assert sum(name.startswith("oasis_") for name in names) == 6


def test_choices_are_made_on_volumes_that_nothing_is_claimed_of(shared_dir):
    folder = shared_dir / "data" / "volumes"
    names = {path.name for path in judged(folder, use="validation")}
    assert len(names) == 4
    assert not names & {path.name for path in judged(folder)}


@pytest.mark.parametrize(("contrast", "cases"), [("T2w", ""), ("T1w", "nobody")])
def test_no_volume_at_all_is_refused(shared_dir, contrast, cases):
    with pytest.raises(InputRefused, match=rf"{cases}.* {contrast} reference"):
        judged(shared_dir / "data" / "volumes", contrast, cases=cases)


def test_the_flair_with_fine_voxels_is_the_only_other_contrast(shared_dir):
    folder = shared_dir / "data" / "volumes"
    names = [path.name for path in judged(folder, "FLAIR")]
    assert names == ["ms_patient26_MNI_FLAIR_SS.nii.gz"]


def test_nifti_goes_through_lps_and_back(data, tmp_path):
    volume = read_nifti(data / "brain.nii.gz")
    write_nifti(tmp_path / "again.nii.gz", volume)
    again = read_nifti(tmp_path / "again.nii.gz")
    assert np.array_equal(again.array, volume.array)
    assert np.allclose(again.affine, volume.affine)


def test_protocol_inputs_have_half_the_samples_or_a_quarter_of_the_slices(case):
    n = np.array(case.volume.array.shape)
    assert (np.array(make_input(case, "iso2_snr0").volume.array.shape) == n // 2).all()
    thick = make_input(case, "thick4_snr25").volume.array
    assert thick.shape == (n[0], n[1], n[2] // 4)


@pytest.mark.parametrize(
    ("name", "voxel_mm"), [("iso1.5_snr25", (1.5, 1.5, 1.5)), ("thick5_snr25", (1, 1, 5))]
)
def test_other_inputs_are_named_in_mm_and_share_the_field_of_view(case, name, voxel_mm):
    low = make_input(case, name).volume
    spacing = np.linalg.norm(low.affine[:3, :3], axis=0)
    assert np.allclose(spacing, voxel_mm, rtol=0.05)
    field = spacing * low.array.shape
    assert np.allclose(field, np.array(case.volume.array.shape) * case.spacing_mm)


def test_sizes_in_mm_count_in_mm_on_a_finer_reference():
    fine = (0.7, 0.667, 0.667)
    assert degradation("iso2.0_snr25", fine).low_mm == (2.0, 2.0, 2.0)
    assert degradation("iso2_snr25", fine).low_mm == (1.4, 1.334, 1.334)
    assert degradation("thick3_snr0", fine).low_mm == (1.0, 1.0, 3.0)


def test_an_input_as_fine_as_the_reference_is_no_test(case):
    assert not is_finer(case, "iso0.9_snr25") and not is_finer(case, "iso1.0_snr25")
    assert is_finer(case, "iso1.2_snr25") and is_finer(case, "thick3_snr25")


def test_equal_noise_falls_on_two_versions_of_a_case(case):
    plain = make_input(case, "iso2_snr25")
    array = case.volume.array.copy()
    array[20:24, 20:24, 20:24] *= 0.5
    other = make_input(case.with_array(array), "iso2_snr25", sigma=plain.sigma)
    change = np.abs(other.volume.array - plain.volume.array)
    assert plain.sigma > 0 and change.max() > 0.1
    assert np.median(change) < 0.1 * plain.sigma


def test_a_name_that_means_nothing_is_refused(case):
    with pytest.raises(InputRefused, match="cube3"):
        make_input(case, "cube3_snr0")
