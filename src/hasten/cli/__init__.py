"""The command line. It reads options, calls the layers below and shows what they return; it decides nothing about models."""
