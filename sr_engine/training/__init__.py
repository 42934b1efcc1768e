"""Training: simulation of pairs, autoencoder, teacher, student, evaluation."""
