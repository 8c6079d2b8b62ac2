"""Finds, installs or builds the programs that are driven: the Pulumi engine, its plugins, and Go to build them with."""
