"""What parameters are called in the files of each library, one module a family of names."""
