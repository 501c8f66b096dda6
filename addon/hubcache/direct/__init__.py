"""Direct connections: clients that are served without mitmproxy, where that changes nothing for anybody."""
