"""Test tools that ship with the package: problem corpora, input makers, tolerances, guarded buffers, one check."""
