"""The benchmark: our cache beside its peers, on the same images and stand-in upstream, in alternating rounds."""
