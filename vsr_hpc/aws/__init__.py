"""The AWS account: clients, errors, prices, and the installations that live in it."""
