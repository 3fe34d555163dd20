"""The $operations, one file each, named by their code; `registry` knows them all."""
