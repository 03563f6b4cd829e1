"""What tests of several rooms need: databases, running servers, proxies and servers that misbehave on purpose."""
