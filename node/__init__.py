"""Everything with I/O: the daemon, the network, the store, HTTP and the command line."""
