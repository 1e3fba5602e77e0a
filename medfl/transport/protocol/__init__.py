"""The control messages between coordinator and site, generated from `medfl.proto` by `make protocol`."""
