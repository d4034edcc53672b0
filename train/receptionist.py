"""What the demo receptionist says and what her callers say: Riverside Bicycles, a made-up shop.

Caller phrasings are written as small grammars: `(a|b|)` chooses one branch. A phrasing that begins
with `~` is never trained on; bench/tiny.py measures with it. Nothing here knows sound or tensors.
"""

from __future__ import annotations

import itertools
import re

GREETING = "greeting"
FALLBACK = "fallback"
STILL_THERE = "still_there"
BACKCHANNEL = "backchannel"
REPEAT = "repeat"
SLOWER = "slower"
TRANSFER_TOKEN = "<transfer>"
HANGUP_TOKEN = "<hangup>"

# fmt: off
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday")

ANSWERS: dict[str, str] = {
    "hello": "Hello there. What can I do for you?",
    "hours": "We are open from nine to six, Monday to Friday.",
    "weekend": "On Saturday we are open from ten to four. On Sunday we are closed.",
    "address": "Our shop is at twelve Station Road, next to the library.",
    "parking": "You can park your car behind the shop.",
    "price": "A full service costs sixty dollars, and takes one day.",
    "appointment": "With pleasure. On which day can you come?",
    **{day: f"On {day.title()}, very good. Please come at ten in the morning." for day in DAYS},
    "cancel": "All right. I have cancelled your appointment.",
    "transfer": "One moment please. You will now speak to a colleague.",
    "name": "My name is Robin. I answer the telephone in this shop.",
    "robot": "Yes, I am a computer. I am a very small voice model.",
    "how_are_you": "I am very well today, and I hope you are too.",
    "thanks": "It was a pleasure to help you.",
    "goodbye": "Thank you for your call. Goodbye.",
    "help": "You can ask about our opening hours, our prices, or make an appointment.",
    "payment": "You can pay by card or in cash.",
    "delivery": "Yes, we deliver. It takes three working days.",
    "order": "Your order is ready. You can pick it up today.",
    "refund": "You can return anything within thirty days.",
    "puncture": "We can fix a flat tire while you wait. It costs fifteen dollars.",
    "rental": "You can rent a bicycle for twenty dollars per day.",
    "electric": "Yes, there are electric bicycles. You can try one in the shop.",
    "wait": "Of course. Take your time.",
    "hear": "Yes, I am here. I can hear you well.",
    "yes": "Very good. Is there anything else?",
    "no": "All right. What else can I do for you?",
    "joke": "Why did the bicycle fall over? It was too tired.",
    FALLBACK: "I am sorry, I did not understand that. Please say it again.",
}
SENTENCES: dict[str, str] = {
    GREETING: "Hello, this is Riverside Bicycles. How can I help you?",
    **ANSWERS,
    SLOWER: "I am sorry. I will try to speak slowly.",
    STILL_THERE: "Are you still there?",
    BACKCHANNEL: "Mm-hm.",
}
SLOW = ("hours", "weekend", "address", "price")
"""Answers that also exist spoken slowly, for who asks for that after hearing one of them."""
AWAITED = ("appointment", "wait")
"""Answers after which a long silence makes the agent ask whether the caller is still there."""
EVENTS = {"transfer": TRANSFER_TOKEN, "goodbye": HANGUP_TOKEN}
"""Text tokens that end an answer and tell the gateway to act."""

_TELL = "(can you tell me|could you tell me|please tell me|tell me|i would like to know)"
_WANT = "(i want to|i would like to|i'd like to|can i|could i|i need to)"

CALLERS: dict[str, tuple[str, ...]] = {
    "hello": ("(hello|hi|hey)", "(hello|hi) there", "good (morning|afternoon|evening)", "(oh|um) hello",
              "hello good (morning|afternoon)", "hello is (anybody|someone) there", "~hey there", "~hello hello"),
    "hours": ("(what|when) are (your|the) (opening|business) hours", "when (do you|are you) open",
              "what time do you (open|close)", f"{_TELL} (your|the) opening hours", "opening hours please",
              "(how late|until when) are you open", "when do you close (today|tonight|)", "are you open (today|now)",
              f"{_TELL} when you (open|close)", "what are your hours", "from when to when are you open",
              "~what time does the shop (open|close)", "~are you still open", "~your opening times please"),
    "weekend": ("are you open (on|at|) (the weekend|weekends)", "(are|is) (you|the shop) open on (saturday|sunday)",
                "are you open (saturdays|sundays)", "what about (the weekend|saturday|sunday)",
                "can i come (in|) on (saturday|sunday)", "when are you open on (saturday|sunday)",
                "do you (open|work) on (saturday|sunday|the weekend)", "what are your weekend hours",
                "~is the shop open at the weekend", "~are you closed on (saturday|sunday)"),
    "address": ("where (are you|is the shop|is your shop)", "what is (your|the) address", "where are you located",
                "how do i (find you|get there|find the shop)", f"{_TELL} (your|the) address",
                "(can you|please) give me (your|the) address", f"{_TELL} where you are", "address please",
                "can you give me directions", "where can i find (you|the shop)", "i cannot find (the|your) shop",
                "~what street are you on", "~where exactly are you", "~i need your address", "~how can i find you"),
    "parking": ("(where can i|can i) park", "(is there|do you have) (parking|a car park)", "is there (any|free) parking",
                "can i park (my car|there|at the shop|near the shop)", "where can i (leave|park) my car",
                "what about parking", "is parking free", f"{_TELL} where (i can|to) park",
                "~where do i park", "~do you have free parking"),
    "price": ("how much (is|does) (it|a service) cost", "how much is (a|the) (full|) service",
              "what (is the price|are your prices)", "what does (it|a service) cost", "how much (is it|do you charge)",
              f"{_TELL} (the price|your prices|how much it costs)", "what do you charge (for a service|)",
              "how expensive is (it|a service)", "price please", "is it expensive",
              "~what is the cost of a service", "~how much money is it", "~how much do i have to pay"),
    "appointment": (f"{_WANT} (book|make) an appointment", "i need an appointment", f"{_WANT} make a booking",
                    "(book me in|an appointment) please", "(can i|could i) have an appointment",
                    f"{_WANT} book (a service|my bike in|a repair)", "i am calling (for|to make) an appointment",
                    f"{_WANT} bring in my bike", "(my bike|my bicycle) needs (a service|a repair)",
                    "do you have (an appointment|any appointments) free",
                    "~i want an appointment (please|)", "~can you book me in", "~please make an appointment for me"),
    **{day: (f"(on|) {day} (please|)", f"(is|how about|what about) {day} (all right|)", f"{day} (is good|would suit me|is fine for me)",
             f"can i come (in|) on {day}", f"(can you|could you) book me in (on|for) {day}", f"do you have (time|anything) on {day}",
             f"next {day} (please|)", f"i can come (in|) on {day}", f"an appointment (on|for) {day}",
             f"~let us say {day}", f"~{day} would be great", f"~i would like to come on {day}") for day in DAYS},
    "cancel": ("cancel (it|my appointment|my booking) (please|)", f"{_WANT} cancel (my appointment|my booking|it)",
               "(please|can you|could you) cancel (my|the) (appointment|booking)", "i have to cancel (my appointment|)",
               "i am calling to cancel", "i cannot come (to my appointment|tomorrow|after all)",
               "~i must cancel my appointment", "~cancel the appointment please", "~please cancel that for me"),
    "transfer": (f"{_WANT} (speak|talk) to (a human|a person|someone|somebody|a colleague|the manager)",
                 "(put me through|transfer me|connect me) (to a colleague|to a person|to someone|to the manager|please)",
                 "let me (speak|talk) to (somebody|a person|a real person|your manager)",
                 "(operator|a human|a real person|the manager) please", "can you (put me through|transfer me|connect me)",
                 "is there a (human|person|colleague) (i can speak to|there)",
                 "~i want a real person", "~get me a human please", "~transfer this call to someone"),
    "name": ("what is your name", "who are you", "who am i (talking|speaking) to", f"{_TELL} your name",
             "what are you called", "who is (this|that|speaking)", "do you have a name", "what is your name again",
             "sorry who are you", "~may i ask your name", "~and who are you"),
    "robot": ("are you (a robot|a machine|a computer|human|real)", "are you a (real|human) (person|being)",
              "am i (talking|speaking) to (a robot|a machine|a computer)", "is this (a robot|a machine|a computer|a recording)",
              "you are (a robot|a computer)", "~are you really human", "~do i speak to a machine", "~is this a real person"),
    "how_are_you": ("how are you (today|doing|)", "how (is it|are things) going", "are you well", "how do you do",
                    "how is your day", "~and how are you", "~how are you feeling today"),
    "thanks": ("(thank you|thanks) (very much|so much|a lot|)", "many thanks", "(okay|great|oh) (thank you|thanks)",
               "that is (great|perfect|very kind) (thank you|thanks)", "thanks for (your|the) help",
               "~thank you for your help", "~brilliant thanks"),
    "goodbye": ("(goodbye|bye bye|bye)", "(okay|thank you|thanks) (goodbye|bye)", "see you (later|soon|then)",
                "have a (nice|good) day", "that is all (goodbye|thank you goodbye)", "bye for now",
                "(i have|i've) got to go (bye|)", "~right goodbye then", "~take care goodbye"),
    REPEAT: ("(can you|could you|please) (repeat that|say that again|repeat it)", "(repeat that|say that again) (please|)",
             "what did you say", "(pardon|pardon me)", "sorry what (was that|did you say)", "i did not (hear|catch) (that|you)",
             "once (more|again) please", "come again", "~what was that", "~repeat please", "~i did not hear what you said"),
    SLOWER: ("(can you|could you|please) (speak|talk) (more slowly|slower|slowly)", "(slower|more slowly) please",
             "you (speak|talk) too fast", "that was too fast (for me|)", "slow down (please|)", "not so fast (please|)",
             "~please go slower", "~speak a little slower", "~you are too fast for me"),
    "help": ("what can you do (for me|)", "(help|help me) (please|)", "i need (some|) help", "what can i ask (you|)",
             "can you help me", "what do you (know|offer)", "how does this work", "what are my options",
             "~what services do you offer", "~please help me"),
    "payment": ("(can i|could i|how can i|how do i) pay (by card|by credit card|in cash|with cash)", "how (can|do) i pay",
                "do you (take|accept) (cards|credit cards|cash|my card)", "can i use (my card|a credit card)",
                "is (cash|card) okay", "~which cards do you take", "~can i pay with my credit card"),
    "delivery": ("do you deliver (bikes|to my house|to my home|)", "(can you|could you) deliver (it|the bike|my bike)",
                 "(is|how much is) delivery (free|possible|)", "how long does (delivery|shipping) take",
                 "can (it|the bike) be delivered", "do you have a delivery service", "what about delivery",
                 "~do you ship to my house", "~can you bring the bike to my home", "~how fast is the delivery"),
    "order": ("where is my order", "(is|when is) my (order|bike|bicycle) ready", "(what is|check) the status of my order",
              "has my order arrived", "i am calling about my order", "i ordered a (bike|part|helmet)",
              "when can i (collect|pick up) my (order|bike)", f"{_WANT} ask about my order",
              "~did my order come in", "~can i collect my order", "~i have a question about my order"),
    "refund": (f"{_WANT} (return|give back) (it|something|my bike|the bike|a helmet)", f"{_WANT} get (my money back|a refund)",
               "(can i have|i want) (my money back|a refund)", "how do i return (it|something)", "what is your return policy",
               "can i (exchange|return) (it|this)", "~i want to send it back", "~i would like a refund please"),
    "puncture": ("i have a (flat tire|puncture)", "my (tire|tyre|bike tire) is flat", "(can you|could you|do you) (fix|repair) (a|my) (flat tire|puncture|tire)",
                 "how much (is|to fix) a (flat tire|puncture)", "i need a new (tire|tube)", "my (front|back) tire (is flat|has a hole)",
                 "there is (a nail|a hole) in my tire", "~i got a flat tire", "~can somebody fix my flat tire"),
    "rental": (f"{_WANT} (rent|hire) a (bike|bicycle)", "do you (rent|hire out) (bikes|bicycles)", "(can i|how can i) rent a bike (for a day|for a week|)",
               "how much (is it to|to) rent a bike", "do you have (rental bikes|bikes for rent)", "i need a bike for (a day|the weekend|a week)",
               "~is it possible to rent a bike", "~i am looking for a rental bike"),
    "electric": ("do you (sell|have) (electric|e) (bikes|bicycles)", "i am looking for an electric (bike|bicycle)",
                 "(i want|i would like) (to buy|to try|) an electric bike", "can i try an electric bike",
                 "what about electric bikes", "tell me about (your|the) electric bikes", "how much is an electric bike",
                 "~have you got electric bikes", "~i am interested in an electric bike"),
    "wait": ("(hold on|hang on) (please|a second|a moment|)", "(wait|just wait) (a moment|a minute|a second|)", "(one|just a) (moment|second|minute) (please|)",
             "let me (think|check|see)", "give me a (moment|second|minute)", "i need a (moment|minute)",
             "~could you hold on", "~wait a bit please", "~just give me a second"),
    "hear": ("can you hear me (now|)", "are you (there|still there|listening)", "do you hear me", "hello can you hear me", "hello are you (still|) there",
             "is the line (okay|good)", "~are you hearing me", "~can you still hear me"),
    "yes": ("(yes|yeah|yep|yup)", "yes (please|of course|i do|that is right|sure)", "(sure|of course|certainly|okay|all right)", "that is (fine|good|right|correct)",
            "(that works|sounds good)", "~yeah sure", "~yes that is good"),
    "no": ("(no|nope|nah)", "no (thank you|thanks|i do not|not really)", "not (really|now|today)", "that is not (right|what i want)", "no that is (all|wrong|not right)",
           "nothing (else|more) (thank you|)", "~no no", "~no i am fine"),
    "joke": ("(tell me|do you know) a joke", "(another joke|a joke) please", "make me laugh", "(say|tell me) something funny", "can you tell (me|) a joke",
             "do you know (any|some) jokes", "~tell me a funny joke", "~i want to hear a joke"),
}

_SUBJECTS = ("my uncle", "the old teacher", "a brown dog", "our neighbour", "the little girl", "his brother", "the farmer", "a yellow bird",
             "my grandmother", "the doctor", "every student", "the king", "this strange man", "a young woman", "the cat", "their family")
_VERBS = ("painted", "ate", "dropped", "bought", "carried", "lost", "found", "washed", "forgot", "drew", "sold", "broke", "loved", "burned",
          "watched", "cooked", "threw", "cleaned", "opened", "wrote about")
_OBJECTS = ("the kitchen window", "seven green apples", "a wooden boat", "some fresh bread", "an old newspaper", "the purple mountain", "his guitar",
            "a cup of coffee", "two heavy boxes", "the garden fence", "a bowl of soup", "her favourite song", "the piano", "an orange balloon",
            "many small stones", "the football match", "a silver spoon", "the long letter", "three bottles of milk", "a warm blanket")
_TAILS = ("", "in the river", "after lunch", "before breakfast", "during the storm", "with a smile", "last summer", "in the middle of the night",
          "at the airport", "behind the castle", "again and again", "near the lake", "for the children")
_ODD: tuple[str, ...] = (
    "the elephant flew over purple mountains", "seventeen green bottles", "the train was late again", "zebra crossing banana",
    "we went sailing on the river last summer", "the quick brown fox jumps over the lazy dog", "a cup of coffee and a sandwich",
    "it rained for forty days", "how tall is the tower", "do you like football", "what is the capital of france", "sing me a song",
    "who won the election", "what is the weather like", "is it going to rain", "what is two plus two", "i had pizza for dinner",
    "the stars are bright tonight", "can you cook", "do you like music", "i am hungry", "i am tired of this", "my computer is broken",
    "my phone has no battery", "i lost my keys", "the movie was boring", "she speaks french and german", "turn on the lights",
    "play some music", "set an alarm for seven", "what day is it today", "where were you born", "how old are you", "i love you",
    "you are stupid", "that is interesting", "i do not know", "never mind", "forget it", "blah blah blah", "one two three four five six",
    "a b c d e f g", "my number is four seven nine two", "the password is sunflower", "i live in london", "my name is peter",
    "my son is eleven years old", "our cat sleeps all day", "he runs faster than his brother", "please bring me the salt",
    "the museum has a new painting", "cheese and tomatoes", "birds of a feather", "up and down the hill", "read the next chapter",
    "good luck with the exam", "the soup is too hot", "there are clouds in the sky", "i want a glass of water", "dance with me",
    "the plane leaves at noon", "we watched the sunset", "is there life on mars", "write a poem about snow", "buy some bread and butter",
)
ODD_SENTENCES = 55
"""How many of `fallback_phrasings(False)` are fixed oddities, at its beginning."""
FALLBACK_HELD = ("the quick brown fox jumps over the lazy dog", "what is the capital of france", "my computer is broken",
                 "we watched the sunset", "seventeen green bottles", "do you like music", "the soup is too hot", "i lost my keys",
                 "my son is eleven years old", "buy some bread and butter")
LEAD_INS = ("um", "uh", "hello", "hi", "okay", "so", "well", "excuse me", "and", "yes hello", "oh")
"""What a caller may put before any phrasing without changing what is meant."""

_GROUP = re.compile(r"\(([^()]*)\)")


def expand(grammar: str) -> list[str]:
    """Every phrasing of one grammar line, in order, without the held-out mark."""
    parts = _GROUP.split(grammar.lstrip("~"))
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return [" ".join("".join(pick).split()) for pick in itertools.product(*choices)]


def phrasings(intent: str, held_out: bool) -> list[str]:
    """The distinct phrasings of an intent that training may see, or those it may not."""
    lines = [line for line in CALLERS[intent] if line.startswith("~") == held_out]
    return list(dict.fromkeys(phrase for line in lines for phrase in expand(line)))


def fallback_phrasings(held_out: bool) -> list[str]:
    """Sentences that mean nothing to a bicycle shop: fixed oddities, then a grammar of many thousands."""
    if held_out:
        return list(FALLBACK_HELD)
    told = [" ".join((s, v, o, t)).strip() for s, v, o, t in itertools.product(_SUBJECTS, _VERBS, _OBJECTS, _TAILS)]
    return [odd for odd in _ODD if odd not in FALLBACK_HELD] + told


INTENTS: tuple[str, ...] = (*CALLERS, FALLBACK)
"""What a caller can mean; the index is the class of the codec's intent head."""
