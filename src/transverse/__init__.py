"""Transfer learning across species, cell types and perturbations, built on scvi-tools."""
