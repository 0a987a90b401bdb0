"""What the tests stand on: a scripted upstream, and gateways in processes of their own."""
