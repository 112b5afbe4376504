"""Values to HTTP and back, without I/O: paths, form fields, JSON, error bodies."""
