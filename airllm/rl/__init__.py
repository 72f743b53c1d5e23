"""Proximal policy optimisation and denoising diffusion, and how they learn in turns."""
