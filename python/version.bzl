"""The version of the distribution: the pinned API's, and our release of it."""

VERSION = "0.3.21.post1"
