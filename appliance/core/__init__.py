"""Plain values that every room knows: errors, servables, routes, questions, outcomes. No file, no socket."""
