"""A web page for the operating room: a process of its own that subscribes to the agent, as the console does.

agent ══plans, clips, health══▶ dashboard process ══WebSocket══▶ browsers
grabber ══headers, ring═══════▶     │
agent ◀══commands═══════════════════┘
"""
