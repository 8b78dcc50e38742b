"""Pictures of pooled features, and numbers that say what of a picture is there: `embedding`."""
