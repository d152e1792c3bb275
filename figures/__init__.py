"""The measurements (data/*.json) and what draws them."""
