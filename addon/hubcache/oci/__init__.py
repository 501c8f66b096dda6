"""The words of the OCI specifications: digests, references, media types, manifests, errors. Pure."""
