"""A local web page to read candidates in and to judge answers blind."""
