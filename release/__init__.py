"""What a release is made of: the distributions, what they need, and their checksums; `make release` builds it."""
