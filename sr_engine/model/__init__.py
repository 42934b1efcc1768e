"""Networks, sampler and weight files; imports torch, numpy, safetensors and nothing else."""
