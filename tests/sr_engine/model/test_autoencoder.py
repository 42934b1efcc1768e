"""E1 and D are each other's inverse, whatever the weights are."""

import torch

from sr_engine.model.autoencoder import LatentCodec, haar_merge, haar_split


def perturbed(codec: LatentCodec) -> LatentCodec:
    generator = torch.Generator().manual_seed(3)
    for parameter in codec.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return codec


def test_the_haar_split_is_orthonormal_and_reversible():
    x = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(1))

    z = haar_split(x)

    assert torch.allclose(z.square().sum(), x.square().sum(), rtol=1e-5)
    assert torch.allclose(haar_merge(z), x, atol=1e-6)


def test_the_decoder_undoes_the_encoder_for_any_weights():
    codec = perturbed(LatentCodec())
    x = torch.rand(3, 1, 32, 48, generator=torch.Generator().manual_seed(2))

    error = (codec.decode(codec.encode(x)) - x).square().mean()

    assert 10 * torch.log10(1 / error) > 100  # dB; evaluation.md asks for 45
    assert not torch.allclose(codec.encode(x), haar_split(x), atol=0.05)  # it learned something


def test_training_makes_the_details_smaller():
    torch.manual_seed(0)
    codec = LatentCodec()
    ramp = torch.linspace(0, 1, 64).square().expand(4, 1, 64, 64)
    before = float(codec.detail_energy(ramp).detach())
    optimiser = torch.optim.Adam(codec.parameters(), lr=1e-2)

    for _ in range(60):
        optimiser.zero_grad()
        loss = codec.detail_energy(ramp)
        loss.backward()
        optimiser.step()

    assert float(loss.detach()) < 0.5 * before
