"""Do recorded actions replay: through the policy's words and back, and into the recorded states?"""
