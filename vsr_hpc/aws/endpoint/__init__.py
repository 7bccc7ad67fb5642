"""SageMaker endpoints and batch transform."""
