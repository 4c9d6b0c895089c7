"""How a step is spread over processes: one module per option of `parallel=`."""
