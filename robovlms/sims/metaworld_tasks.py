"""Meta-World's 50 tasks in words: the benchmark has no language, so instructions and paraphrases are ours."""

from __future__ import annotations

from robovlms.sims.base import Task

WORDS = {  # by task: the instruction, and two others that mean the same
    "assembly": ("put the ring on the peg", "place the ring over the peg", "slip the ring onto the peg"),
    "basketball": ("put the ball in the basket", "drop the ball into the basket", "place the ball inside the hoop"),
    "bin-picking": (
        "move the cube from the red bin to the blue bin",
        "take the cube out of the red bin and put it into the blue one",
        "bring the cube over to the blue bin",
    ),
    "box-close": ("put the lid on the box", "cover the box with the lid", "close the box with its lid"),
    "button-press": ("press the button", "push the button in", "hit the button"),
    "button-press-topdown": ("press the button from above", "push the button down", "press down on the button"),
    "button-press-topdown-wall": (
        "press the button from above, behind the wall",
        "reach over the wall and push the button down",
        "press down on the button that is behind the wall",
    ),
    "button-press-wall": (
        "press the button behind the wall",
        "reach past the wall and push the button",
        "push the button that the wall hides",
    ),
    "coffee-button": (
        "press the button of the coffee machine",
        "start the coffee machine with its button",
        "push the coffee machine's button",
    ),
    "coffee-pull": (
        "pull the mug away from the coffee machine",
        "move the mug out from under the coffee machine",
        "draw the cup back from the coffee machine",
    ),
    "coffee-push": (
        "push the mug under the coffee machine",
        "slide the cup beneath the coffee machine",
        "move the mug to the coffee machine",
    ),
    "dial-turn": ("turn the dial", "rotate the dial", "twist the knob"),
    "disassemble": ("take the ring off the peg", "lift the ring from the peg", "remove the ring from the peg"),
    "door-close": ("close the door", "shut the door", "push the door shut"),
    "door-lock": ("lock the door", "turn the lock so that the door is locked", "bolt the door"),
    "door-open": ("open the door", "pull the door open", "swing the door open"),
    "door-unlock": ("unlock the door", "turn the lock so that the door is free", "unbolt the door"),
    "drawer-close": ("close the drawer", "shut the drawer", "push the drawer in"),
    "drawer-open": ("open the drawer", "pull the drawer out", "slide the drawer open"),
    "faucet-close": ("close the faucet", "shut the tap", "turn the faucet off"),
    "faucet-open": ("open the faucet", "turn the tap on", "turn the faucet on"),
    "hammer": ("hammer the nail into the box", "drive the nail in with the hammer", "hit the nail with the hammer"),
    "hand-insert": ("put the hand into the hole", "insert the gripper into the hole", "reach into the hole"),
    "handle-press": ("press the handle down", "push the handle down", "lower the handle"),
    "handle-press-side": (
        "press the sideways handle down",
        "push the handle at the side down",
        "lower the sideways handle",
    ),
    "handle-pull": ("pull the handle up", "lift the handle", "raise the handle"),
    "handle-pull-side": ("pull the sideways handle up", "lift the handle at the side", "raise the sideways handle"),
    "lever-pull": ("pull the lever up", "lift the lever", "raise the lever"),
    "peg-insert-side": (
        "insert the peg into the hole",
        "push the peg into the hole in the side",
        "put the peg in the opening",
    ),
    "peg-unplug-side": ("unplug the peg", "pull the peg out", "take the peg out of its hole"),
    "pick-out-of-hole": (
        "take the puck out of the hole to the goal",
        "lift the puck from the hole and bring it to the goal",
        "pick the puck out of the hole and move it to the goal",
    ),
    "pick-place": (
        "pick up the puck and bring it to the goal",
        "lift the puck to the goal",
        "grasp the puck and place it at the goal",
    ),
    "pick-place-wall": (
        "bring the puck over the wall to the goal",
        "lift the puck across the wall to the goal",
        "pick up the puck and carry it over the wall",
    ),
    "plate-slide": ("slide the plate into the net", "push the plate into the goal", "move the plate into the net"),
    "plate-slide-back": (
        "slide the plate back out of the net",
        "pull the plate out of the goal",
        "move the plate out of the net",
    ),
    "plate-slide-back-side": (
        "slide the plate sideways out of the net",
        "pull the plate to the side, out of the net",
        "move the plate out of the net to the side",
    ),
    "plate-slide-side": (
        "slide the plate sideways into the net",
        "push the plate to the side, into the net",
        "move the plate into the net from the side",
    ),
    "push": ("push the puck to the goal", "slide the puck to the goal", "shove the puck over to the goal"),
    "push-back": (
        "pull the puck back to the goal",
        "drag the puck back to the goal",
        "bring the puck back to the goal",
    ),
    "push-wall": (
        "push the puck around the wall to the goal",
        "slide the puck past the wall to the goal",
        "move the puck to the goal behind the wall",
    ),
    "reach": ("move the hand to the goal", "reach the goal", "bring the gripper to the goal"),
    "reach-wall": (
        "move the hand over the wall to the goal",
        "reach the goal behind the wall",
        "bring the gripper past the wall to the goal",
    ),
    "shelf-place": ("put the cube on the shelf", "place the block on the shelf", "set the cube down on the shelf"),
    "soccer": ("kick the ball into the goal", "shoot the ball into the net", "push the ball into the goal"),
    "stick-pull": (
        "pull the thermos with the stick",
        "use the stick to draw the thermos closer",
        "drag the thermos with the stick",
    ),
    "stick-push": (
        "push the thermos with the stick",
        "use the stick to move the thermos away",
        "shove the thermos with the stick",
    ),
    "sweep": ("sweep the cube off the table", "push the block off the table", "wipe the cube over the table's edge"),
    "sweep-into": ("sweep the cube into the hole", "push the block into the hole", "wipe the cube into the hole"),
    "window-close": ("close the window", "shut the window", "slide the window shut"),
    "window-open": ("open the window", "slide the window open", "push the window open"),
}

_OPPOSITE_PAIRS = [
    ("assembly", "disassemble"),
    ("coffee-push", "coffee-pull"),
    ("door-open", "door-close"),
    ("door-lock", "door-unlock"),
    ("drawer-open", "drawer-close"),
    ("faucet-open", "faucet-close"),
    ("handle-press", "handle-pull"),
    ("handle-press-side", "handle-pull-side"),
    ("plate-slide", "plate-slide-back"),
    ("plate-slide-side", "plate-slide-back-side"),
    ("window-open", "window-close"),
]
OPPOSITES = dict(_OPPOSITE_PAIRS) | {b: a for a, b in _OPPOSITE_PAIRS}

TASKS = {
    name: Task(name=name, instruction=told, opposite=OPPOSITES.get(name), paraphrases=tuple(others))
    for name, (told, *others) in sorted(WORDS.items())
}
