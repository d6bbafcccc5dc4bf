"""Reading what a curation wrote: inspection, and new files of the selected pairs."""
