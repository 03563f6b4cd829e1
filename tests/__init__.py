"""The specification. Folders mirror the package; `isolation/` holds the product's promises."""
