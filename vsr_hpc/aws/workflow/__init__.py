"""The Step Functions workflow that upscales what arrives in a bucket."""
