"""The doing: follows a frozen schedule with torch and torch.distributed. No Lightning."""
