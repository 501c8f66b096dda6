"""Types of the OCI specifications: digests, references, media types, manifests, errors. Free of side effects."""
