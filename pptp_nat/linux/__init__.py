"""The kernel's side: one interface per file, plain arguments in, our values out."""
