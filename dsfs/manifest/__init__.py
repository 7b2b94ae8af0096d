"""Outside text becomes a dataset: manifests in two forms, source URIs, secrets, and the small grammars in them."""
