"""The words of the wire: ids, records, messages, limits and errors. No I/O, no clock, no randomness."""
