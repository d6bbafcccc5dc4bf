"""The names of parameters in the files of each library; one module for each family of names."""
