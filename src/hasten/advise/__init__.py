"""What a model costs on a machine: counted, predicted from the machine's limits, and measured."""
