"""Contracts and toy worlds that the tests, and other packages, build on."""
