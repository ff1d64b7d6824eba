"""Models that come in over HTTP: received in ranges, published, tried."""
