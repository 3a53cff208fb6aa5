"""References of the bench: programs and applications that the product's stages are measured beside."""
