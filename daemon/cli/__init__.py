"""The command line: a verb parses, makes one call, prints."""
