"""Rules of single resource types, one file each; `registry` knows them all."""
