"""More of what callers say, for training alone: the same grammars as train/receptionist.py.

bench/tiny.py asks nothing from here: its phrasings are receptionist.py's. A phrasing that is held out there
is struck from what these grammars make.
"""

from __future__ import annotations

import random
from functools import cache

from train import receptionist as script

# fmt: off
_CAN = "(can you|could you|would you|will you|please)"
_MAY = "(can i|could i|may i|is it possible to)"
_WANT = "(i want to|i would like to|i'd like to|i need to|i have to|i wanted to)"
_TELL = "(can you tell me|could you tell me|tell me|do you know|i want to know|i was wondering|let me know|would you tell me)"
_SHOP = "(shop|store|bike shop|workshop)"
_BIKE = "(bike|bicycle)"
_ME = "(to me|for me|)"

MORE: dict[str, tuple[str, ...]] = {
    "hello": ("hello (hello|robin|sir|again)", "(hi|hey|oh hi) (again|robin|everybody|)", "(a very|) good (morning|afternoon|evening|day) (to you|there|)",
              "hello (this is|it is) (peter|mary|anna|john|me)", "(yes|yeah) (hello|hi|good morning)", "greetings", "hey (you|hello)",
              "(hello|hi) i am calling (from|because of) (work|home|something)", "nice to (meet|hear) you"),
    "hours": (f"{_TELL} (when|what time|until when) you (open|close|shut)", f"(when|what time) does (the|your) {_SHOP} (open|close|shut) (today|tonight|in the evening|in the morning)",
              "(how long|until what time|till when|till what time) (are you|is the shop|is the store) open", "(are you|is the store) (open|closed) (right now|tomorrow|today|this evening|on weekdays|at the moment|yet|)",
              f"{_WANT} know (the|your) (opening times|opening hours|business hours|hours)", "(your|the) (business|opening|working|shop) (hours|times) (please|today|)",
              "what are (your|the) (opening times|working hours|store hours|times)", "at what time do you (open|close|shut|start)", "do you (open|close) (early|late|at nine|at six|at noon)",
              "(how early|from when) (do you open|are you open|can i come)", "is there somebody in the shop (now|today)", "when (is|will) the (shop|store) (be|) open",
              "when are you (open|closed|there)", "which hours are you open", "what time (can|should) i come (by|over)", "how late can i (come|come by|visit)"),
    "weekend": ("do you open (at|on) (the weekend|weekends|saturdays|sundays)", f"is (the|your) {_SHOP} (open|closed) on (saturday|sunday|saturdays|sundays|weekends)",
                "(what|which) (time|hours) do you (open|close|work|have) on (saturday|sunday|the weekend|weekends)", "are you (there|working|at work|closed) (on saturday|on sunday|at the weekend|on the weekend)",
                f"{_MAY} (come|visit|drop by|come by|stop by) (on|this) (saturday|sunday|weekend)", "(how late|how long|until when) are you open on (saturday|sunday|the weekend)",
                "(opening hours|your hours) (on|for) (saturday|sunday|the weekend)", "(saturday|sunday) (opening hours|hours|please|is good for me|would suit me)", "(this|next) (saturday|sunday|weekend)",
                "and (on|) (saturday|sunday|the weekend)", f"{_TELL} (if|whether|when) you are open on (saturday|sunday|the weekend)", "(on|) (saturday|sunday)", "i only have time (on saturday|on sunday|at the weekend)",
                "i (can|could) only come (on saturday|on sunday|at the weekend)"),
    "address": (f"{_TELL} where (the shop|your shop|the store) is", "(what|which) (road|town|city|place|part of town) are you (on|in|at)", "where (exactly|) (is|are) (the store|your store|the bike shop|the place|you located|you based)",
                f"{_WANT} (know|have|get) (the|your|an) (address|location)", f"how (do i|can i|could i|would i) (get|come|drive|walk) to (you|the {_SHOP}|your place|your {_SHOP})",
                f"{_CAN} (give|send|tell|text) me (the|your) (address|location)", "(the|your) (address|location) (please|)", "where do i (have to|need to|) (go|come|find you)",
                "(which|what) is your (address|location)", f"{_TELL} how to (get there|find you|get to the shop)", "(i need|give me) (directions|the directions|the address)", "(are you|is the shop) (near|close to|far from) (the station|the library|here|the centre|the city)",
                "i am (lost|on my way) where are you", f"what is the address of (the|your) {_SHOP}", "whereabouts are you", "how far away (are you|is the shop)", "where is (it|that|your place)"),
    "parking": ("(is there|do you have|have you got|are there) (any|some|a|) (parking|parking space|car park|parking lot|place to park|parking spaces)", f"{_TELL} (where|if) (i|we|one) can (park|park my car|park the car|leave the car)",
                "where (should|could|would|do) (i|we) (park|leave|put) (the|my|our) car", f"{_MAY} park (the car|a car|in front|behind the shop|outside|nearby|in front of the shop|on the street)",
                "(can|could) (we|i) come by car", "i am coming by car", "(how much|what) (is|does) (the|) parking (cost|)", "(where is|is there) (the|a) (car park|parking lot|parking space)", "(is there|i need) (a|some) (space|place) for my car",
                "i (have|drive) a (car|big car|van) where can i (park|leave it)", "(parking|a parking space) please", "do i have to pay for parking", "is it easy to park"),
    "price": (f"(what|how much) (would|will|does) (it|a service|a repair|the service|the repair|this|that) cost {_ME}", f"{_TELL} (what|how much) (it|a service|the service|a repair) (costs|is|will cost)",
              "how much (would|will|should) (it|that|a service|a repair) (be|cost)", "what (is|are) (the|your) (price|prices|cost|costs|rates|fee) (for|of) (a service|a full service|a repair|servicing)", f"(what do|how much do) (you charge|i pay|i owe you) (for a repair|for a {_BIKE}|for that|for it|)",
              "(what|how much) is the (price|cost|charge|fee)", "(the|your) (price|prices|cost) please", "(is|are) (it|you|the service|a service|your prices) (cheap|expensive|very expensive|free)", "(i want|i need|i would like) (a|the) (price|quote|price list|price for a service)",
              "how (expensive|cheap) (are you|is a service|is a repair|would it be)", "what will (i|we) have to pay", "(what|how much) (does|would) (a full service|servicing my bike|a check|a check up) (cost|be)", "how many dollars is (it|a service)",
              "what does (a repair|the repair|servicing|a full service|that) cost"),
    "appointment": ("(i need|i want|i would like|i'd like|can i get|can i have|may i have|could i get) (a|an|the) (appointment|booking|slot|repair|service)", f"{_WANT} (schedule|arrange|set up|fix|get|reserve) an appointment",
                    f"{_WANT} (bring|bring in|drop off|leave) (my|a|the) {_BIKE}", f"(my|the) {_BIKE} (needs|should get|has to get) (a service|a repair|fixing|servicing|to be repaired|to be serviced)", f"{_CAN} (book|schedule|make|arrange|give me) (an appointment|a booking|a service|a time) {_ME}",
                    f"(can you|could you|would you|do you) (repair|fix|service|look at|check) (my|a|the) {_BIKE}", f"(when|how soon) (can i|could i|may i|should i) (bring|bring in|drop off) my {_BIKE}", "(do you have|have you got|is there) (a|any|an|some) (free|open|) (slot|slots|appointment|appointments|time)",
                    "(an appointment|a booking) (for a service|for a repair|for my bike|)", "(when|how) can i (get|make|book|have) an appointment", f"my {_BIKE} is (broken|damaged|making a strange noise)", "(the brakes|the gears|my brakes) (do not work|are broken|need fixing)",
                    "i am calling (to book|about) an appointment", f"{_MAY} (book|make|schedule|reserve) (an appointment|a booking|a service|a time)", "i would like to have my bike (repaired|serviced|checked)", "make (me|) an appointment"),
    **{day: (f"(can|could|may) (i|we) come (by|over|in|round|) (on|this|next) {day} (morning|afternoon|)", f"{day} (works|works for me|is best|suits me|is okay|is perfect|is better|morning|afternoon|at ten|sounds good)", f"(how|what) about (this|next) {day}",
             f"(i am|i'm|i will be) (free|there|in town|available) (on|) {day}", f"(let's|let us) (make it|take|do) {day}", f"(maybe|perhaps|possibly|rather|preferably|better) (on|) {day}", f"(i want|i would like|i prefer|i would prefer|i'd like|i need) (to come|an appointment|it|) (on|) {day}",
             f"(yes|okay|well|so) (on|) {day} (please|then|)", f"(please|can you|could you) (make|put|write) it (on|for|down for) {day}", f"(is|are) (there|you|anything) (free|something free|open|possible) (on|) {day}", f"would {day} (work|be okay|be possible|be all right|do)",
             f"{day} (would|will) (work|be good|be best|be fine|do|be perfect)", f"(this|the coming) {day}", f"(any time|sometime|a time) (on|) {day}", f"(book|put) (me|it) (in|down) (for|on) {day}", f"does {day} work (for you|)",
             f"i (could|might|will) come (by|) (on|) {day}") for day in ("monday", "tuesday", "wednesday", "thursday", "friday")},
    "cancel": ("(i want|i would like|i'd like|i need|i wish) to (cancel|call off|drop) (the|my|that|an) (appointment|booking|service|reservation)", f"{_CAN} (cancel|call off|delete|remove) (it|that|the booking|my reservation|my appointment|my booking|the appointment)",
               "(cancel|delete|drop|forget) (the|my|that) (booking|appointment|reservation)", "(i|we) (cannot|can not|can't) (make it|come|be there) (on monday|today|after all|any more|this week|to my appointment|)",
               "i (will|am) not (able to|) (come|coming|make it|be there)", "(i am|sorry i am) calling to (cancel|cancel my appointment|cancel a booking)", "(how|where) (can|do) i cancel (my|an|the) (appointment|booking)", "i (no longer|do not) need (the|my|an) appointment (any more|)",
               "(something came up|i am ill|i am sick) (i have to cancel|please cancel|i cannot come)", "(please|) take me off the list", "(i|we) have to (cancel|call off) (it|the booking|the appointment)", "i would like a cancellation"),
    "transfer": ("(i want|i would like|i'd like|i need|can i have|give me|get me|may i have) (a|the|some) (person|human|human being|real human|operator|manager|boss|colleague|mechanic|real person)", "(can|could|may) i (please|) (speak|talk) (to|with) (a|the|your) (person|human|mechanic|boss|manager|owner|colleague|operator|real human)",
                 f"{_CAN} (connect|transfer|pass|forward) (me|my call|the call) (to|on to) (a person|someone|somebody|a human|the manager|your boss|a colleague|the workshop)", f"{_CAN} put me through (to|) (the boss|the workshop|a human|somebody|the manager|someone else)",
                 "(is there|isn't there) (anyone|anybody|someone|somebody|a person|a real person) (else|) (i can talk to|i could speak to|there|to talk to)", "(i don't want to|i do not want to) (talk|speak) to a (robot|machine|computer)", "let me (speak|talk) (to|with) (a human|someone|the boss|the owner|a mechanic|someone else)",
                 "(a|the) (colleague|mechanic|boss|owner|person|manager|operator) please", "(i must|i have to|i need to|i want to) (speak|talk) (with|to) (someone|somebody|anybody|a human being|your boss|your colleague|the owner)", "(human|representative|agent|operator) (please|now|)",
                 "someone else please", "(connect|transfer) me (please|now|)", "(put|pass) me on to (someone|a colleague|a person|your manager)"),
    "name": ("(what|how) (should|can|do|may) i call you", f"{_TELL} (who you are|who this is|what your name is|your name)", "(what is|what's|say|and) your name (please|then|)", "who (am i|are we) (speaking|talking) (with|to)", "(sorry|and|so|okay) (who is this|who are you|what is your name)",
             "i did not (catch|get|hear) your name", "(with whom|to whom) am i (speaking|talking)", "whom am i speaking to", "(your name|the name) please", "what name do you have", "who (is there|is on the line|answers the phone|are you please)", "(may|can|could) i (know|have) your name", "do i know you",
             "tell me who you are", "introduce yourself", "what is it you are called"),
    "robot": ("are you (a|an) (bot|voice bot|chat bot|artificial intelligence|answering machine|person|program|real robot|computer program|recording|voice model)", "(is|was) this (a|an) (machine|robot|bot|answering machine|human|person|computer voice|computer program|recorded voice|recorded message)", "(am i|are we) (talking|speaking) (to|with) (a|an) (human|person|bot|program|real human|machine|answering machine|computer)",
              "you (sound|talk) like a (robot|machine|computer)", "(are you|you are) (not|) (human|real|alive|a human)", "(i think|i guess) you are a (robot|machine|computer)", "(is|are) (there|you) a real (person|human) (there|on the line|)", "you are not (human|real|a person|a human)", "(so|and) are you a (robot|human|machine|computer)",
              "are you (some kind of|a kind of|really a|just a) (robot|machine|computer)", "(am i talking|is this) to a robot", "are you a human being or a (machine|robot|computer)", "what kind of (machine|robot|computer) are you"),
    "how_are_you": ("how are you (my friend|this morning|then|all|really|getting on|this evening)", "(hello|hi|hey|good morning|so|well) how are you (today|doing|)", "how do you feel (today|)", "how (is|was) (your|the) (day|morning|week|evening) (going|)", "are you (fine|okay|all right|doing well|good|feeling well) (today|)", "(how is|how's) (everything|it going|life|business|work)", "(what's|what is) up (with you|)",
                    "how have you been", "everything (okay|all right|fine) with you", "(i hope|hope) you are (well|fine|okay)", "how are (you guys|things) (today|)", "how goes it", "(and|) how is it with you", "are you having a (good|nice) day"),
    "thanks": ("(thank you|thanks|thank you so much) (for that|for everything|for the information|for your time|for this|indeed|robin|again)", "(that|this) (was|is) (very|really|so) (helpful|kind|nice|good of you) (thanks|thank you|)", "(thanks|thank you) (really|you have been very helpful|that helps|that helps a lot|that was helpful|that is good to know)", "(wonderful|excellent|perfect|lovely|super|nice|good|very good|alright) (thank you|thanks)",
               "(i am|i'm) (very|so|really) grateful", "i (really|) appreciate (it|that|your help)", "(cheers|much obliged)", "(you are|you've been) (very|so) (helpful|kind)", "(a thousand|a million|so many|my) thanks", "thank you (kindly|ever so much|very very much)", "(yes|ah) (thank you|thanks)", "(how kind|good of you) thank you"),
    "goodbye": ("(goodbye|bye|bye bye) (then|now|for now|robin|for today)", "(okay|well|alright|all right|so|right) (bye|bye bye|goodbye)", "(thank you|thanks) (and|very much|a lot) (goodbye|bye|bye bye)", "(see|talk to|speak to) you (tomorrow|on monday|later|soon|again|next week)", "(have a|a) (nice|good|great|lovely|wonderful) (day|evening|weekend|afternoon|one|week) (goodbye|bye|too|)",
                "(i|we) (must|have to|should|need to) (go|leave|hang up|run) (now|bye|goodbye|)", "(so long|farewell|good night|until then|until tomorrow|till then|cheerio)", "that (was|is) (all|everything|it) (bye|goodbye)", "(i am|i'm) (done|hanging up|leaving now|going now)", "(you can|please) (hang up|end the call) (now|)", "(end|finish|stop) (the|this) call", "(goodbye|bye) (and|) (thank you|thanks|have a nice day|see you)"),
    "repeat": ("(can|could|would) you (please|) (repeat|say) (that|it|this) (again|once more|one more time|please|)", "(say|repeat) (it|that|this|the last sentence) (again|once more|one more time|for me|)", "(excuse me|pardon|sorry|what) (i did not hear you|what did you say|what was that|can you repeat that|could you repeat that|say that again)",
               "(i|sorry i) (did not|didn't|could not|couldn't) (understand|hear|get|catch) (you|that|what you said|it|this)", "(what|how) was (that|it) (again|)", "(one more time|once again|again|once more) (please|)", "what (have you|did you just|were you) (said|say|saying)", "(i beg your pardon|beg your pardon|pardon|excuse me|sorry|what)",
               "(tell|give) me (that|it) (again|once more|one more time)", "what are you saying", "i missed (that|it|what you said)", "(would you mind|please) (repeating|repeat) (that|it|)", "again what did you say", "come again please", "(huh|eh) what"),
    "slower": (f"{_CAN} (speak|talk|say it|say that|go|read it) (a bit|a little|much|a little bit|) (slower|more slowly)", "(can|could|would) you (please|) (slow down|speak slowly|talk slowly|be slower) (a bit|a little|)", "(a bit|a little|much|even) (slower|more slowly) (please|)", "(you are|you're|that is|it is|this is|that was) (speaking|talking|way|much|) too (fast|quick) (for me|)",
               "(do not|don't) (speak|talk|go) so (fast|quickly|quick)", "(slowly|slower) (please|robin|)", "(speak|talk|say it|say that|repeat that) (slowly|slower|more slowly) (please|)", "i (cannot|can not|can't) (follow|keep up|write so fast)", "(please|) (slow|calm) down (a bit|a little|)", "not (so|that|too) (fast|quick|quickly) (please|)", "you (talk|speak) (very|so) (fast|quickly)", "less fast please", "take it slow"),
    "help": ("(what|which) (things|questions|information|topics) can (you|i) (do|ask|help with|answer)", "(what|how) (can|could) you (help me|do|help me with|offer|tell me|answer)", "(can|could|would|will) you (please|) (help|assist) (me|us) (please|)", "i (need|want|would like) (help|your help|assistance|some information|information|advice)", "(what|which) (options|choices|possibilities) (do i have|are there|can i choose)", "(what|how) (do|does) (you|this|it|this thing) (work|do)",
             "(tell me|explain) (what you can do|how this works|what i can ask|the options)", "(i do not know|i don't know) (what to say|what to ask|how this works|what to do)", "(what|anything) (is|else) (possible|can you do)", "(the|a) (menu|list of options) please", "(help|please help|assistance) (please|)", "i have a (question|problem)", "(may|can|could) i ask (you|) (something|a question)", "what are you (for|there for|good at|able to do)"),
    "payment": (f"{_MAY} pay (with|by|using|in) (card|a card|a credit card|cash|my phone|a debit card|credit card|cheque|my credit card)", "(do|would|can) you (accept|take) (credit cards|debit cards|cash|cards|cheques|a card|my credit card|visa|only cash)", "(how|in what way|with what) (can|could|do|should|may) (i|we) pay (you|for it|for that|)", "(which|what) (payment|payments|ways of paying|cards|payment methods) (do you accept|do you take|are there|can i use)",
                f"{_TELL} (how|if) i can pay (by card|with cash|in cash|you|)", "(is it possible|is it okay) to pay (by card|in cash|with card|with a credit card)", "(cash|card|credit card) or (cash|card)", "(i want|i would like|i'd like|i need) to pay (by card|in cash|with my card|with a credit card|cash|)", "can i (use|pay with) (cash|a debit card|my phone|dollars)", "(do i|must i|should i) (have to|) pay (in cash|by card|cash|in advance)", "i (have no|do not have any) cash", "(is a|are) (credit card|cards|credit cards) (okay|fine|possible|accepted)", "where do i pay"),
    "delivery": (f"(can|could|would|will) you (deliver|bring|send|ship) (it|the {_BIKE}|my {_BIKE}|them|the order|something|everything) (to my house|to my home|to me|home|to my address|)", "(do you|can you|could you) (deliver|ship|send) (to my address|to the city|at home|to other cities|goods|home|here|abroad)", "(how much|what) (is|does|would) (the|) (delivery|shipping) (cost|fee|)", "(how long|how many days) (does|will|would) (the|) (delivery|shipping) take",
                 "(is there|do you have|do you offer|have you got) (a|any|) (delivery|home delivery|shipping|delivery service)", f"(can|could) (i|we) (have|get) (it|the {_BIKE}|my order) (delivered|shipped|sent home)", f"(i want|i would like|i'd like|i need) (it|the {_BIKE}|my {_BIKE}|a {_BIKE}) (delivered|shipped|sent to my home)", "(when|how soon) (will|can|could) (it|you|the bike) (be delivered|deliver|deliver it)", f"(do you|can you) bring (it|the {_BIKE}|bikes) (to my door|home|to me)",
                 "(delivery|home delivery|shipping) (please|)", "(what|how) about (shipping|home delivery)", "is (shipping|home delivery) (free|possible|included)", f"{_TELL} (if you deliver|how long delivery takes|about delivery)"),
    "order": (f"(is|has) (my|the) (order|parcel|package|{_BIKE}|helmet|part) (ready|arrived|come|there|finished|in|done|repaired) (yet|already|)", "(where|what) (is|about|has happened to) (my|the) (order|parcel|package|new bike)", f"(when|what time|how soon) (can|could|may|should|do) i (collect|pick up|get|fetch|have) (my|the) (order|{_BIKE}|helmet|parcel|part)", f"(when|what day) will (my|the) (order|{_BIKE}|parcel|part) (be ready|arrive|come|be there|be finished)",
              "i (have|) ordered (something|a lock|a light|a new bike|a wheel|a chain|a part) (last week|from you|on monday|)", f"(i am|i'm) calling (about|because of) (an|my|the) (order|{_BIKE}|parcel|delivery i ordered)", f"{_CAN} (check|look up|find|track) (my|the) (order|status of my order|order number)", f"(what is|what's) (the status of|with|happening with) my (order|{_BIKE})", f"(how long|how much longer) (does|will) my (order|{_BIKE}) take", f"(can|could|may) i (collect|pick up|fetch) my (parcel|{_BIKE}|new bike|helmet) (today|now|yet|)",
              f"i (am waiting|have been waiting|wait) for my (order|{_BIKE}|parcel)", "(my|the) order (please|status|number is four|has not come|did not arrive)", f"{_TELL} (if|when|whether) my (order|{_BIKE}) is ready", "did my (parcel|bike|package|helmet) (arrive|come)"),
    "refund": (f"{_WANT} (return|give back|bring back|send back|exchange|take back) (a|the|my|this) ({_BIKE}|helmet|order|lock|light|thing|product)", f"{_MAY} (return|give back|bring back|send back|exchange|change) (it|this|something|a {_BIKE}|the {_BIKE}|a helmet|the helmet|my order|what i bought)", "(how|where|when) (do|can|could|should) i (return|exchange|give back|bring back) (it|this|the bike|a helmet|something|my order)",
               "(can|could|may) i (get|have) (a refund|my money back|the money back|my money)", "(i want|give me|i would like|i need|i demand) (my money back|a refund|the money back|my money)", "(what|how) (is|are|about) (your|the) (return|refund|returns|exchange) (policy|conditions|rules|)", f"(it|the {_BIKE}|the helmet|the lock) (does not|doesn't) (fit|work) (can i return it|i want to return it|i want my money back)", "(do you|would you|can you) (take|accept|give) (it back|returns|refunds|things back|back)",
               "(i am|i'm) not (happy|satisfied) with (it|my bike|the bike|what i bought)", "(how long|until when|how many days) can i (return|exchange) (it|something|things)", "(refund|a return|a refund) please", "i (bought|got) the wrong (size|bike|thing|helmet)"),
    "puncture": ("(i|we) (have|had|got|have got) (a|another) (flat|flat tire|flat tyre|puncture|hole in my tire|broken tube)", "(my|the) (front|back|rear|) (tire|tyre|wheel|tube) (is|went|has gone|got) (flat|broken|empty|punctured)", f"{_CAN} (fix|repair|mend|patch|change|replace) (a|my|the) (flat tire|flat|tire|tyre|puncture|tube|inner tube|front tire|back tire)", "(how much|what) (is|does|would|do you charge for) (fixing|repairing|mending|) (a|my) (flat tire|puncture|flat|tire repair) (cost|)",
                 "(how long|how much time) (does|will) (it take to|) (fix|repair) (a flat tire|a puncture|my tire) (take|)", "(there is|i have|there's) (no air|glass|a nail|a thorn|a hole) in (my|the|one) (tire|tyre|wheel|front tire)", "(my|the) (tire|tyre|wheel) (is losing|loses|lost|has no) air", "(i need|i want|i would like) (a|my) (new|) (tire|tube|inner tube|flat tire repaired|tire fixed|puncture repaired)", "(a|the|one) (flat tire|puncture|flat)", "i (rode|drove) over (a nail|glass|something sharp)", "do you (fix|mend|repair|do) (flat tires|punctures|tires|flats)", "(the air|all the air) (is|went|has gone) out of my tire", "my (tire|tyre) (burst|exploded|popped)"),
    "rental": (f"{_MAY} (rent|hire|borrow|lease) (a|one|some|two|your) ({_BIKE}|bikes|bicycles) (from you|today|tomorrow|for a week|for the day|)", "(do you|can you|would you) (rent|hire|lend) (out|) (bikes|bicycles|a bike|cycles)", "(how much|what) (is|does|would|do you charge for) (it cost to|) (rent|renting|hiring|to hire|a rental) (a bike|a bicycle|bikes|)", f"(i want|i would like|i'd like|i need|we want|we would like) to (rent|hire|borrow) (a|two|some) ({_BIKE}|bikes)", "(i need|we need|i want) a (bike|bicycle) (for today|for tomorrow|for two days|for a few days|for the day)",
               "(have you got|do you have|are there|do you offer) (any|some|) (rental|rentals|bikes to rent|bicycles for rent|bikes for hire|bike rental|rental bicycles)", "(bike|bicycle|cycle) (rental|hire) (please|)", "(what|how) about (renting|hiring) a (bike|bicycle)", f"{_TELL} (about|how much|if i can) (rent|renting|bike rental|hire) (a bike|)", "(the|your) (rental|rent|hire) (price|prices|cost)", "i am (a tourist|visiting) and (want|need) to rent a bike", "rent a (bike|bicycle)", "where can i rent a (bike|bicycle)"),
    "electric": ("(do you|can you) (have|sell|stock|offer|rent|carry) (any|some|) (electric|e|electrical|battery) (bikes|bicycles|cycles)", "(are there|have you) (any|got any|some) (electric|e|electrical) (bikes|bicycles)", "(i want|i would like|i'd like|i need|i wish) to (buy|try|see|test|ride|get) an (electric|e) (bike|bicycle)", "(how much|what) (is|does|are|do) (an|the|your|) (electric|e) (bike|bicycle|bikes) (cost|)", "(can|could|may) i (test|see|ride|try|buy|look at) (an|the|your) (electric|e) (bike|bikes|bicycle)", f"{_TELL} (about|something about|if you have) (electric|e|your electric|the electric) (bikes|bicycles)",
                 "(i am|i'm) (looking for|searching for|thinking of|after) (an|some|a good) (electric|e) (bike|bicycle|bikes)", "(electric|e) (bikes|bicycles|bike) (please|)", "(what|which) (kind of|) (electric|e) (bikes|bicycles) (do you have|are there|do you sell)", "(a|any) (bike|bicycle) with (a motor|an electric motor|a battery)", "(do you have|i want|i need) (a bike|bikes|something) with (a motor|an engine|a battery)", "how (far|fast) (does|do) (an|the) electric (bike|bikes) go"),
    "wait": ("(hold on|hang on|hold the line|wait) (for|just|) (a|one) (second|moment|minute|sec)", "(can you|could you|would you|please) (wait|hold|hang on|hold the line) (a moment|a second|for a moment|a minute|please|)", "(just|only|give me|i need) (a|one) (second|moment|minute|sec|little time) (please|)", "(let me|i have to|i must|i need to) (think|look|check|see|ask|find it|get my calendar|look it up) (for a moment|about it|a moment|first|)", "(i am|i'm) (thinking|looking|just looking|checking|still looking)", "(wait|stop|hold it|hang on|stay on the line) (please|there|)", "(one|two) (minutes|second|moment|sec) (please|)", "(bear with me|be patient|hold please|stand by)", "(wait|hold on) (i have to|let me|i need to) (think|look|check|get a pen)", "(i will|i'll) be (right back|back in a second|back)", "i need (a second|a bit of time|some time|to think)", "i am not ready (yet|)", "where is my (pen|calendar)"),
    "hear": ("(can|do|could) you (still|) hear me (okay|well|all right|now|at all|)", "(are you|is anybody|is anyone|is someone) (there|still there|still on the line|on the line|still with me|here)", "(hello|hey|robin) (are you there|can you hear me|do you hear me|are you still there|is somebody there|are you listening)", "(is|how is) (the|my|this) (line|connection|microphone|phone|sound) (good|okay|bad|working|all right|)", "(am i|do i) (audible|coming through|loud enough|getting through)", "(can you|do you) understand me (well|now|)", "(you|are you) (hear|hearing) me", "(did|have) (you|i) (hear|lose|lost) (me|you)", "(testing|test) (one two|one two three|)", "(are you|you) (listening|awake|still listening) (to me|)", "have you gone", "can anybody hear me"),
    "yes": ("(yes|yeah|yep|yup|ja) (yes|thanks|absolutely|exactly|definitely|that works|okay|good|it is|i would|you can)", "(of course|absolutely|definitely|exactly|correct|right|indeed|agreed|fine|alright|sure thing|very well|very good|okay)", "(that|this|it) (is|sounds|would be) (right|correct|okay|great|perfect|good|fine|true)", "(okay|sure|good|great|all right) (good|yes|fine|then|okay|let us do that|that is fine)", "(i agree|i do|i would|i think so|why not|by all means|please do|you are right|go ahead)", "(oh|ah|well|mm) yes (please|)", "(that is|it is) (okay|fine|all right) (for me|with me)", "uh huh"),
    "no": ("(no|nope|nah|not) (no|never|not at all|not that|sorry|i don't|it is not|i do not want that|absolutely not)", "(of course not|certainly not|absolutely not|never|no way|not at all|not yet|not quite|not today thank you)", "(that|this|it) (is|was) (not|) (wrong|not correct|not right|incorrect|not it|not true|not what i meant|not what i asked|a mistake)", "(i|no i) (do not|don't) (think so|want that|need that|like that|want it|agree|mean that)", "(oh|ah|well|um) no (thanks|thank you|)", "no (that is|that's|it is|it's) (not|) (okay|it|right|fine|enough|all right|everything)", "(nothing|no more|not now) (thank you|thanks|for now|)", "(rather|better) not", "you (misunderstood|are wrong|got it wrong|misunderstood me)"),
    "joke": ("(can|could|would|will) you (please|) (tell|give) (me|us|) (a|another|some|one more) (joke|jokes|funny story)", "(tell|give) (me|us) (a|another|one more|some) (joke|jokes|good joke|funny story|bicycle joke)", "(do you|can you) (know|have|tell) (a|any|some) (good|funny|) (joke|jokes|funny stories|funny things)", "(i want|i would like|i need|i'd like) (to hear|) (a|another|one more) (joke|good joke|funny story)", "(make|let) (me|us) (laugh|smile)", "(say|tell me|do) something (funny|amusing|silly)", "(be funny|entertain me|amuse me|cheer me up)", "(one|a|any) (more|good|funny) (joke|one) please", "(how about|what about) (a|another) joke", "(jokes|joke) please", "are you funny"),
}

_PLACES = ("paris", "london", "china", "my garden", "the kitchen", "new york", "the desert", "school", "the church", "hospital")
_THINGS = ("a sandwich", "a pizza", "a new car", "some flowers", "shoes", "a television", "a dog", "milk and eggs", "a ticket to rome", "a blue shirt", "a guitar", "medicine", "a house", "the newspaper", "a table for two", "apple juice")
_PEOPLE = ("my mother", "the president", "your sister", "the queen", "my dentist", "the police", "our teacher", "your wife", "the baker", "my lawyer")
_FACTS = ("the capital of italy", "the biggest animal", "the square root of nine", "the speed of light", "the best film", "your favourite colour", "the moon made of", "the temperature", "the score", "the exchange rate", "the news", "the meaning of life")

OTHER: tuple[str, ...] = (
    f"(do you sell|can i buy|i want to buy|i am looking for|where can i get|bring me|i would like) ({'|'.join(_THINGS)})",
    f"(what is|tell me about|do you know|who knows|explain) ({'|'.join(_FACTS)})",
    f"(how do i get to|have you been to|when is the next train to|what is the weather in|i was born in|we drove to) ({'|'.join(_PLACES)})",
    f"(i have to call|did you see|please phone|send a letter to|i love|where is|how old is) ({'|'.join(_PEOPLE)})",
    "(turn|switch) (on|off) the (radio|light|heating|television|music)", "(play|sing|stop|record) (a song|the music|some jazz|that tune)",
    "(set|start|stop) (a timer|the alarm|the clock) (for ten minutes|at six|)", "(remind|wake) me (at eight|tomorrow morning|about the meeting|in an hour)",
    "(my|our|his|her) (dog|baby|car|roof|computer|garden|boat|knee|tooth) (is|was) (ill|broken|too small|very old|green|hurting|leaking)",
    "(the|a|this) (river|mountain|teacher|engine|window|story|cake|castle|doctor) (is|was|became|looks) (very deep|rather old|quite strange|beautiful|empty|made of wood|covered with snow)",
    "(one|three|seven|nine|twenty) (four|five|eight|zero|six) (two|seven|one|forty) (nine|three|eleven|)",
    "(yesterday|last year|in april|at midnight|some time ago) (we ate fish|it snowed|i fell asleep|he lost his hat|they moved house|the king died)",
    "(who|what) (wrote|invented|painted|discovered|built) (this book|the telephone|that picture|america|the bridge|the radio)",
    "(why|how) (is the sky blue|do birds fly|do cats purr|does bread rise|did they leave|are you so quiet)",
    "(i think|i believe|they say|he said) (it will rain|the world is round|money is the root of evil|summer is over|you should eat more|it was a tuesday night in june)",
    "(translate|spell|count|multiply|calculate) (this word|seven by eight|to one hundred|my name|the letter)", "(lorem ipsum dolor|la la la|abracadabra|hocus pocus|yada yada yada|hmm well you know)",
    "(read|write|send|delete) (an email|the message|my text|a postcard|a letter)", "(are you|is he|is she) (married|hungry|from spain|a doctor|thirteen|asleep|angry)",
    "(i|we) (like|hate|eat|cook|grow|paint) (potatoes|spaghetti|tomatoes|portraits|roses|rice)", "(left|right|straight|up|down) (and then|or) (left|right|straight|up|down)",
)
"""Sentences the shop has no answer to."""

FOREIGN: dict[str, tuple[str, ...]] = {
    "de": ("guten tag ich hätte gern ein brötchen", "wo ist der bahnhof", "das wetter ist heute schön", "ich verstehe dich nicht", "wie spät ist es", "meine katze schläft auf dem sofa", "können sie mir helfen", "vielen dank und auf wiedersehen"),
    "fr": ("bonjour je voudrais un café", "où est la gare", "il fait beau aujourd'hui", "je ne comprends pas", "mon frère habite à paris", "quelle heure est-il", "je m'appelle pierre", "il y a un chat dans le jardin"),
    "es": ("hola quiero una mesa para dos", "dónde está la estación", "no entiendo nada", "mi hermana vive en madrid", "qué hora es", "me gusta la música", "hoy hace mucho calor", "el perro come en la cocina"),
    "it": ("buongiorno vorrei un gelato", "dove si trova il museo", "non capisco", "mia sorella lavora a roma", "che ore sono", "il treno parte alle dieci", "mi piace il mare", "questa sera andiamo al cinema"),
    "pl": ("dzień dobry poproszę kawę", "gdzie jest dworzec", "nie rozumiem", "mój brat mieszka w krakowie", "która godzina", "dzisiaj jest zimno"),
}
# fmt: on


@cache
def held_out() -> frozenset[str]:
    """Every phrasing that training may not use, also behind a lead-in."""
    plain = [phrase for intent in script.CALLERS for phrase in script.phrasings(intent, True)]
    return frozenset([*plain, *script.FALLBACK_HELD])


@cache
def training_phrasings(intent: str) -> list[str]:
    """All phrasings of an intent that training may say; of the fallback, thousands of odd sentences."""
    if intent == script.FALLBACK:
        lines = script.fallback_phrasings(False)[: script.ODD_SENTENCES]
        more = OTHER
    else:
        lines, more = script.phrasings(intent, False), MORE[intent]
    made = [phrase for line in more for phrase in script.expand(line)]
    return [phrase for phrase in dict.fromkeys([*lines, *made]) if phrase not in held_out()]


def one(intent: str, rng: random.Random) -> str:
    """A training phrasing: a third are the receptionist's own, the rest by grammar line, so that all count."""
    if intent == script.FALLBACK:
        return odd_one(rng)
    while True:
        line = rng.choice(MORE[intent])
        pick = rng.choice(script.expand(line) if rng.random() < 0.65 else script.phrasings(intent, False))
        if pick not in held_out():
            return pick


def odd_one(rng: random.Random) -> str:
    """A sentence the shop has no answer to: a question of another world, a story, or words at random."""
    draw = rng.random()
    if draw < 0.45:
        return rng.choice(training_phrasings(script.FALLBACK))
    if draw < 0.75:
        return rng.choice(script.fallback_phrasings(False))
    count = rng.randint(1, 6)
    return " ".join(rng.choice(_odd_words()) for _ in range(count))


@cache
def _odd_words() -> list[str]:
    """Words of the odd sentences that no phrasing of an intent has."""
    meant = {w for intent in MORE for phrase in training_phrasings(intent) for w in phrase.split()}
    odd = {w for phrase in training_phrasings(script.FALLBACK) for w in phrase.split()}
    odd |= {w for phrase in script.fallback_phrasings(False)[::97] for w in phrase.split()}
    return sorted(odd - meant)
