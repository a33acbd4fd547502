"""What tests share: tiny models, made files, stand-ins, references, and programs that they start."""
