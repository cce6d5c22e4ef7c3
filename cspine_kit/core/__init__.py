"""Core: the words, tables and rules every room shares. Imports no other room."""
