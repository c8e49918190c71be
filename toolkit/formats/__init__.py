"""Opening, writing and verifying every artifact. Only this room knows h5py and FFCV's file layout."""
