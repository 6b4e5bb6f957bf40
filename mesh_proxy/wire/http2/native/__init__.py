"""The C part of the libnghttp2 engine: `build` says how it becomes the module `_nghttp2`."""
