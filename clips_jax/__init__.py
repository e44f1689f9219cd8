"""CLIPS pretraining in JAX: CLIP on images, noisy AltTexts and long synthetic recaptions (arXiv 2411.16828)."""
