"""What a build proves before its bundle is handed out: its graph against float32, its plans against its graph."""
