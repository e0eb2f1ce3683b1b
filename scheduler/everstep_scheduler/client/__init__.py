"""The front door for producers: submit, results, the inbox, manifests."""
